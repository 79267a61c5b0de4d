"""What a plug-in author subclasses, and what a trial and its record are. Imports nothing of ours but errors."""
