"""Where weights come from: one key table and config translation per family, one reader for all."""
