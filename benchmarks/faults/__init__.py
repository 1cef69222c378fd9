"""Faults under load: does every request still end with exactly the text that it would have had?"""
