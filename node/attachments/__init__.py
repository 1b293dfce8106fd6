"""Attachments of a question: pictures and tables, turned into what the text model reads, in a process of their own."""
