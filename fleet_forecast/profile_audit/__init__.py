"""Profile audit: servers whose behaviour contradicts their profile, and profiles that consist of two."""
