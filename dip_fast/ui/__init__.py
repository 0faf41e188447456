"""A page in the browser that starts runs and steers them.  Its state is the runs' folders; needs the extra [ui]."""
