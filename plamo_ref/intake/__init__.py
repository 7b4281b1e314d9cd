"""What comes in, checked where it enters: values, prompts, fields of files, other names."""
