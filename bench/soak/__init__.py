"""Mixed work for as long as one likes: does anything fail, or grow?

On loopback, in ``data_dir/soak``: refreshes of a small MovieLens over and over, each a process of its own after source
rows were altered; a publisher that rebuilds pools, puts each version in force and expires the oldest; SQL readers with
the reader's role; and a second engine, :mod:`.follower`, which drafts from whatever version is in force and must write
what the refreshes wrote. Meanwhile memory, open files, connections and latencies are sampled.
"""
