"""From bytes to pixels: uint8 gray (H, W), or a reason why not; in a process of its own."""
