"""What is done to the log beside reading and writing it: trimmed, erased from, repaired."""
