"""Do the features help? Click models on a domain's own data, with and without knowledge, arm against arm."""
