"""The built-in methods, trackers and executors. They come through the same entry points as everybody else's."""
