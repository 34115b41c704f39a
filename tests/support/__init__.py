"""What several test modules share: small real projects, and a Cargo whose work is counted."""
