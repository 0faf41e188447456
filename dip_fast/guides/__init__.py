"""Classical estimates that a fit is compared with, or helped by: array in, array out.  Importing this loads nothing."""
