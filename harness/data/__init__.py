"""Tables from the hub or a folder: reading them, what identifies them, tokens kept on disk, a report on them."""
