"""What passes need to know of experts and routers: scores to drop experts by, fits of routers, new weights."""
