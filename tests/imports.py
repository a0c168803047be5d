"""What the process that others are forked from has imported: all that is slow. It opens no channel to anybody."""

import parties.__main__
import parties.coordinate
import parties.data_owner
import parties.dealer
import parties.model_owner
import parties.plaintext
import parties.service

assert parties.__main__
