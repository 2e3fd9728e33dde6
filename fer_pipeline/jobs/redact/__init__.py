"""Write copies of the images of a labelling run, with a mosaic over the faces that were found."""
