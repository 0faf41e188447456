"""The folded network as data, its definition in PyTorch, and folding itself.  Importing this loads nothing."""
