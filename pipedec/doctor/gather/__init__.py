"""Facts, gathered: the only part of the doctor that reads files or talks to anything."""
