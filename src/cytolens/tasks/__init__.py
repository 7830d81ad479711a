"""How a network speaks `Cells`, in NumPy: inputs, decoding, back to cells.

The same code runs in training, validation and prediction, with and without torch.
"""
