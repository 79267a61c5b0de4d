"""The built-in methods, analyses and trackers. They come through the same entry points as everybody else's."""
