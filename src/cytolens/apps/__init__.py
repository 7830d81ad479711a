"""What people and programs touch: thin, they call what lies below."""
