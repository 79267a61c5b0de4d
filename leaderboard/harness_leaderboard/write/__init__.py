"""The view in files: a writer per format. Each only formats; what is said is decided in the view."""
