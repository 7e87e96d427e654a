"""Model families: one file each, found by `visae.model.families`; other packages add theirs by entry point."""
