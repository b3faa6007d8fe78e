"""What a WSGI server loads: ``gunicorn wsgi:app``."""

from trainer_app import log
from trainer_app.factory import create_app
from trainer_app.folders import check_folders
from trainer_app.settings import load_settings

settings = load_settings()
check_folders(settings)
log.configure(settings)
app = create_app(settings)
