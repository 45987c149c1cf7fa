"""How much of PyTorch works on secrets, measured against PyTorch's own database of operators."""
