"""One way to read and write files: a local folder or an object store."""
