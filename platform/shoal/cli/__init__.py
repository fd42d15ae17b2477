"""The command line: thin. Each command reads its options and calls one function; heavy imports wait inside."""
