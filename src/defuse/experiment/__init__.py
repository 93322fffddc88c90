"""What experiments share: answers on disk, figures from them, and the time left."""
