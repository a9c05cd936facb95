"""The custom operators: schemas and PyTorch references that every implementation is tested against."""
