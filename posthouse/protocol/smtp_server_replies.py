"""The fixed replies of the SMTP server session (RFC 5321 section 4.2, RFC 3463, RFC 4954 section 6)."""

from posthouse.protocol.smtp_server_syntax import format_reply

OK = format_reply(250, "2.0.0", "Ok")
MAIL_OK = format_reply(250, "2.1.0", "Ok")
RCPT_OK = format_reply(250, "2.1.5", "Ok")
GO_AHEAD = b"354 End data with <CR><LF>.<CR><LF>\r\n"
GOODBYE = format_reply(221, "2.0.0", "Goodbye")
HELP = format_reply(214, "2.0.0", "Submission server. Commands: EHLO HELO AUTH STARTTLS MAIL RCPT DATA RSET NOOP QUIT")
NOT_VERIFIED = format_reply(252, "2.0.0", "Not verified; send mail and see")
TLS_READY = format_reply(220, "2.0.0", "Ready to start TLS")
AUTH_OK = format_reply(235, "2.7.0", "Authentication successful")
# RFC 4954 section 4: the text after 334 is base64; LOGIN asks "Username:" and "Password:".
ASK_RESPONSE = b"334 \r\n"
ASK_USERNAME = b"334 VXNlcm5hbWU6\r\n"
ASK_PASSWORD = b"334 UGFzc3dvcmQ6\r\n"

BARE_LF = format_reply(500, "5.5.2", "Lines must end in CR LF")
CONTROL_CHARACTER = format_reply(500, "5.5.2", "Control characters are not allowed in commands")
LINE_TOO_LONG = format_reply(500, "5.5.2", "Line too long")
UNKNOWN = format_reply(500, "5.5.2", "Command not recognised")
NOT_IMPLEMENTED = format_reply(502, "5.5.1", "Command not implemented")
NO_ARGUMENT = format_reply(501, "5.5.4", "This command takes no argument")
NEEDS_NAME = format_reply(501, "5.5.4", "Syntax: EHLO name")
EHLO_FIRST = format_reply(503, "5.5.1", "Send EHLO first")
NESTED_MAIL = format_reply(503, "5.5.1", "A transaction is in progress")
MAIL_FIRST = format_reply(503, "5.5.1", "Send MAIL first")
RCPT_FIRST = format_reply(503, "5.5.1", "Send RCPT first")
NO_RECIPIENTS = format_reply(554, "5.5.1", "No valid recipients")
TOO_MANY_RECIPIENTS = format_reply(452, "4.5.3", "Too many recipients in one transaction")
TOO_LARGE = format_reply(552, "5.3.4", "The message is larger than this server takes")
BAD_CHARACTERS = format_reply(550, "5.6.11", "The message holds bare CR, bare LF or NUL; lines must end in CR LF")
AUTH_NEEDED = format_reply(530, "5.7.0", "Authentication required")
TLS_NEEDED = format_reply(530, "5.7.0", "Authentication required; issue STARTTLS first")
AUTH_NEEDS_TLS = format_reply(538, "5.7.11", "Encryption is required to authenticate")
AUTH_FAILED = format_reply(535, "5.7.8", "Authentication credentials invalid")
AUTH_UNKNOWN = format_reply(504, "5.5.4", "Mechanism not supported; use PLAIN or LOGIN")
AUTH_CANCELLED = format_reply(501, "5.7.0", "Authentication cancelled")
AUTH_MALFORMED = format_reply(501, "5.5.2", "The response is malformed")
AUTH_DONE = format_reply(503, "5.5.1", "Already authenticated")
AUTH_IN_MAIL = format_reply(503, "5.5.1", "Not during a transaction")
AUTH_SLOWED = "Too many failed attempts; try again later"
NO_STARTTLS = format_reply(502, "5.5.1", "TLS is not available")
TLS_ACTIVE = format_reply(503, "5.5.1", "TLS is active already")
TOO_MANY_ERRORS = format_reply(421, "4.7.0", "Too many errors")
TOO_MANY_GUESSES = format_reply(421, "4.7.0", "Too many failed attempts to authenticate")
WRONG_PROTOCOL = format_reply(500, "5.5.2", "This is an SMTP server")
SHUTTING_DOWN = format_reply(421, "4.3.2", "Service is shutting down")
