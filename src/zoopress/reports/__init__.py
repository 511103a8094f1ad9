"""What people read of results: the report of a model as a page, and several models side by side."""
