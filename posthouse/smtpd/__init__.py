"""The SMTP face: submission by programs and devices."""
