"""Class activation maps: computing, drawing and scoring them."""
