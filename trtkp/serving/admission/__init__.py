"""What a server takes in: memory, connections, and the time that clients may take. It knows no protocol."""
