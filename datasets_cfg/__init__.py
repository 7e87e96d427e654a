"""One YAML per data set: where its files are expected and how labels, masks, boxes and groups are found."""
