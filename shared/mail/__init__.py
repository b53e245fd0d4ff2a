"""Mail, without any I/O: values, parsing, matching and decisions. Clock and dice are arguments."""
