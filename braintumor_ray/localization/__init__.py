"""Where tumors are (masks, boxes, outlines), and how well heatmaps find them."""
