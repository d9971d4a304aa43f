"""Which cases should be labeled next?"""
