"""Pictures, COCO JSON and HTML from results."""
