"""Ray and the machines of its cluster: started, asked, shared out, and given tasks."""
