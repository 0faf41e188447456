"""Model files: the folded program written in each format, and replayed.  Importing this loads nothing."""
