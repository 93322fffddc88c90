"""Commands that are killed, fill the disk, meet a second writer or find damage, and their ends."""
