"""What one looks at: tables and plots of finished runs."""
