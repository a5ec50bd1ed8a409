"""What all web servers share: the token check and the login page's cookie.

Change here who may ask. Pages and routes belong to the rooms that serve them.
"""
