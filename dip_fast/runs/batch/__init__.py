"""Many pictures: a plan of what is to be done, a pool that does it, a driver between them, and a manifest.

The truth is in the run folders: the record of each says what it was made of, and how far it has come.  The manifest is
a view of them.  A pool is whatever takes a picture and reports what became of it (`dip_fast.runs.batch.pool.Pool`).
"""
