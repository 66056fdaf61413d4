"""The pages that people see in a browser. Plain Starlette, rendered on the server, without script."""
