"""The main job: a real language model forgets the chemical elements, with and without RNA."""
