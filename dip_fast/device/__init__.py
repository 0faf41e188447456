"""What will run where, and whether it fits: devices, precision, engines, memory.  Importing this loads nothing."""
