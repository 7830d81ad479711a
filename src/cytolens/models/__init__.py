"""Networks: tensors in, tensors out. Nothing here knows of files, labels or images."""
