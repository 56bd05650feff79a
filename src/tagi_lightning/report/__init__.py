"""Reports of run folders: what was measured, the paper's own figures beside it, and what the difference is worth."""
