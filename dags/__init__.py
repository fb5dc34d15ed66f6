"""A short file for each kind of job, named as in the UI; what its tasks do is in the package beside."""
