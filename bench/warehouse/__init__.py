"""What the warehouse takes: loading, nearest neighbours, the point-in-time join; and whether no text gets lost.

Everything happens in a database of its own on the warehouse's server, which is dropped afterwards. The texts are made
up of MovieLens' titles and genres. A vector is the mean of two films', by the settings' encoder, with noise: as many as
wanted, and as near to each other as texts about films are.
"""
